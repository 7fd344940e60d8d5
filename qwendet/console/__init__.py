"""What a person sees: text, tables and bars on a terminal; checks in the formats of CI systems."""

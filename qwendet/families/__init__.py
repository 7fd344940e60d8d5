"""What differs between Qwen's vision families: one frozen object each; no other room names one."""

"""Files to samples: lines, images, shards, labels, augmentation; ``formats/`` has other tools' data sets."""

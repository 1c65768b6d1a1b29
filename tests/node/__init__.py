"""A whole node on real parts, used as its owner uses it: by its commands, boto3 and SSH."""

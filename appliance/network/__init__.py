"""The network role: owns addresses and policy, answers bindings."""

"""What tests share: databases, needs, conditions to wait for."""

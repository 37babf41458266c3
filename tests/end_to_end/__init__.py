"""What people do with a model, in their order, at the sizes they use."""

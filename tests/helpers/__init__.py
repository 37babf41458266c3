"""What tests share: processes, terminals, browsers, small models, plain twins."""

"""Results as tables that a person would want to look at; each function prints what the verb of its name returns."""

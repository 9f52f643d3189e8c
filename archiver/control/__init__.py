"""Commands: each defined once, given in the control room or on the shell."""

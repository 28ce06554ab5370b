"""Find a method for every head by what each costs and what it loses, on the model itself."""

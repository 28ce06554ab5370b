"""Pictures of attention, and of what a method keeps of it."""

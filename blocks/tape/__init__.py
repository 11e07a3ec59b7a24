"""The machine room: a computation written plainly, recorded once, and replayed in arrays that are planned once."""

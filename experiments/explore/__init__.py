"""A live page about a trained run: pick a picture and a class, set rules, see what would have to change."""

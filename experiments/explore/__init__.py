"""A live page on a trained run: pick a picture and a class, set rules, see what would have to change."""

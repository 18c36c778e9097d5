"""Images that reach or leave a class, beside the minimum-norm attacks of other libraries."""

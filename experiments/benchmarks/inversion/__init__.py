"""Images that reach or leave a class, compared with the minimum-norm attacks of other libraries."""

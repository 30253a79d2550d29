# A config that says nothing.

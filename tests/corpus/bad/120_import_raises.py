# A module that raises.
# raised: broken
# log: ValueError: broken

raise ValueError("broken")

# A module that nobody knows.
# raised: No module named 'nowhere_to_be_found'
# log: ModuleNotFoundError

import nowhere_to_be_found

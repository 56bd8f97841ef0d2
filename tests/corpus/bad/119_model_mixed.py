# A BaseModel that mixes auto_dataclass with its base.
# raised: "Second" has auto_dataclass=True, but its base "First" has auto_dataclass=False: the fields of one would be missing in the other
# log: ValueError

from cog import BaseModel


class First(BaseModel, auto_dataclass=False):
    a: int


class Second(First):
    b: int

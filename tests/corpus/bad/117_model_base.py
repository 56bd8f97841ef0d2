# A BaseModel whose first base is none.
# raised: Primary base class of "X" must inherit from BaseModel
# log: TypeError

from cog import BaseModel


class Mixin:
    pass


class X(Mixin, BaseModel):
    a: int

# A BaseModel with a dataclass mixed in.
# raised: Cannot mixin dataclass "X" while inheriting from `BaseModel`
# log: TypeError

from dataclasses import dataclass

from cog import BaseModel


@dataclass
class X:
    a: int


class Model(BaseModel, X):
    b: int

from __future__ import annotations
def test_x(images):
    print(images)

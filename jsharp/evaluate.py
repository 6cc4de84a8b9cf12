"""`python -m jsharp.evaluate`: measures trained learners on any data.

This module cannot be imported, because `jsharp.evaluate` is the function
`jsharp.evaluation.evaluate`.
"""

if __name__ != "__main__":
  raise ImportError(
    "jsharp.evaluate is a function and a program: write `from jsharp import evaluate`, "
    "or run `python -m jsharp.evaluate`"
  )

from jsharp._commands.evaluate import main

main()

"""`python -m jsharp.predict`: classifies images by a few examples of each class."""

if __name__ == "__main__":
  from jsharp._commands.predict import main

  main()

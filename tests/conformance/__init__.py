"""What every engine has to do: the tests take the `store` fixture, whichever engine it runs on."""

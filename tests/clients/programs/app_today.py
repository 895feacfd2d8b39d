"""An app and a function of the client of today, to be run and deployed."""

import fal
from pydantic import BaseModel


class Input(BaseModel):
    name: str


class Output(BaseModel):
    text: str


class Greeter(fal.App, keep_alive=60, name="greeter"):
    machine_type = "S"

    def setup(self):
        print("printed by setup")
        self.greeting = "hello"

    @fal.endpoint("/")
    def greet(self, given: Input) -> Output:
        return Output(text=f"{self.greeting} {given.name}")


@fal.function()
def shout():
    print("printed in the function")
    return "loud"

"""An app and a function of the client of today with a module and a file beside them."""

import os

import fal
import shouting
from pydantic import BaseModel

FILES = ["shouting.py", "words"]


class Text(BaseModel):
    text: str
    bytes: int


class Speaker(fal.App, keep_alive=60, name="speaker"):
    machine_type = "S"
    app_files = FILES

    def setup(self):
        from shouting import shout

        self.shout = shout

    @fal.endpoint("/")
    def speak(self) -> Text:
        with open("words/one.txt") as file:
            return Text(text=self.shout(file.read()), bytes=os.path.getsize("words/large.bin"))


@fal.function(app_files=FILES)
def speak():
    with open("words/one.txt") as file:
        print("spoken", shouting.shout(file.read()), os.getcwd(), sorted(os.listdir()))


@fal.function(serve=True, app_files=FILES)
def said():
    with open("words/one.txt") as file:
        return {"said": shouting.shout(file.read())}

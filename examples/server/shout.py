"""Functions at addresses: one that the server wraps in a web app, and one with a web server of its own.

`serve.sh` registers and calls them.
"""

from atoll import isolated


@isolated(serve=True)
def shout(text):
    print("shouting", text)
    return text.upper()


@isolated(requirements=["flask"], exposed_port=8080)
def flask_app():
    from flask import Flask, jsonify, request

    app = Flask("shout")

    @app.route("/")
    def shout_query():
        return jsonify({"result": request.args["text"].upper()})

    app.run(host="0.0.0.0", port=8080)

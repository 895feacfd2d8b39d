"""A network that is trained at the first call and restored from `/data` at the second.

It differs from the document that it follows in these places. Keras 3 saves weights only to names that end in
`.weights.h5`, so the file has that suffix. A model has nothing to load weights into before it is built, so the input's
shape is given and the optimizer is built too. The data are made here, since the document leaves them open. TensorFlow
is imported inside the functions: it is in their environment and need not be in yours.
"""

import time

from atoll import isolated


def create_model():
    import tensorflow as tf

    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input(shape=(20,)),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    return model


@isolated(requirements=["tensorflow"], env={"TF_CPP_MIN_LOG_LEVEL": "2"}, keep_alive=60)
def train_and_predict(seed, model_weights_file="/data/model.weights.h5"):
    import os

    import numpy as np
    import tensorflow as tf  # noqa: F401  # loaded here, so that the time below is the model's alone

    random = np.random.default_rng(seed)
    inputs = random.normal(size=(4000, 20)).astype("float32")
    labels = np.eye(10, dtype="float32")[np.argmax(inputs[:, :10], axis=1)]

    began = time.perf_counter()
    model = create_model()
    if os.path.exists(model_weights_file):
        model.load_weights(model_weights_file)
        how = "restored"
    else:
        model.fit(inputs, labels, epochs=12, verbose=0)
        model.save_weights(model_weights_file)
        how = "trained"
    seconds = time.perf_counter() - began

    accuracy = float(np.mean(np.argmax(model.predict(inputs, verbose=0), axis=1) == np.argmax(labels, axis=1)))
    return how, seconds, accuracy


if __name__ == "__main__":
    for call in ("first", "second"):
        how, seconds, accuracy = train_and_predict(0)
        print(f"{call} call: {how} in {seconds:.2f} s, accuracy {accuracy:.2f}")

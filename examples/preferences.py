"""What one call writes to `/data`, the next one reads: preferences of a user, and recommendations from them."""

from atoll import isolated


@isolated()
def generate_recommendations(user_id, preferences):
    preferences_file = f"/data/user_{user_id}_preferences.txt"
    with open(preferences_file, "w") as f:
        f.write(preferences)
    print(f"stored the preferences of user {user_id} in {preferences_file}")


@isolated()
def read_preferences(user_id):
    with open(f"/data/user_{user_id}_preferences.txt") as f:
        return f.read()


if __name__ == "__main__":
    generate_recommendations(7, "hiking, jazz, black tea")
    print("another call reads:", read_preferences(7))

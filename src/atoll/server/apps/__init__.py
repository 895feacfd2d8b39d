"""Apps: the functions of one file, deployed together; and deployments, to which an app can go back."""

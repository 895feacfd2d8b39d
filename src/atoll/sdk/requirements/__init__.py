"""Requirements as programs write them: local paths made absolute, files of the project read into entries."""

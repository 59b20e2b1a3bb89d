"""The commands of a fingerprint (runs), what each gives (record), the file and its comparison."""

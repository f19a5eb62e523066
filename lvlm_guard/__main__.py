"""`python -m lvlm_guard` is `lvlm-guard`."""

from lvlm_guard.cli import main

if __name__ == "__main__":
    main()

"""`python -m diffusion_lab` is the diffusion-lab command."""

from diffusion_lab.cli import main

if __name__ == "__main__":
    main()

"""What a release is made of (SBOM), and whether it may be (audit): `make sbom`, `make audit`."""

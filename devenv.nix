# `devenv shell`: every tool that the project's commands use. On Debian `cargo xtask setup` gets the same by apt.
{
  pkgs,
  lib,
  config,
  ...
}:
{
  languages.rust = {
    enable = true;
    channel = "stable";
    version = "1.95.0";
  };

  packages =
    with pkgs;
    [
      cargo-fuzz
      git
    ]
    ++ lib.optionals stdenv.isLinux [
      # Machines: the fallback, the lab, the tests' comparisons.
      qemu
      util-linux
      virtiofsd
      # The guest's kernel.
      bc
      bison
      elfutils
      flex
      gnumake
      lz4
      perl
      xz
      zstd
    ]
    ++ lib.optionals stdenv.isDarwin [
      vfkit
    ];

  env = lib.optionalAttrs pkgs.stdenv.isLinux {
    CAPSA_LAB_KERNEL = "${import ./nix/lab-kernel.nix { inherit pkgs; }}";
  };

  enterShell = ''
    echo "cargo xtask run, cargo xtask test, cargo xtask --help"
  '';
}

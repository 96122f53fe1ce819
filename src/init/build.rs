//! Compiles init (`main.rs` beside this file) into `$OUT_DIR/prewarm-init`, which the worker embeds.
//!
//! Cargo can't build a `no_std`, `no_main` binary with its own linker arguments as part of a package for `std`, so this
//! calls the same compiler directly. The output depends on the compiler and the sources alone: no machine's paths, no
//! time, no build id; the volume that carries it to an engine is named by its content.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    // The whole directory.
    println!("cargo::rerun-if-changed=src/init");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error=init, the first process of a container, can't be built: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let get = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    let target = get("TARGET")?;
    let (os, arch) = (get("CARGO_CFG_TARGET_OS")?, get("CARGO_CFG_TARGET_ARCH")?);
    if os != "linux" || !["x86_64", "aarch64"].contains(&arch.as_str()) {
        return Err(format!("it exists for Linux on x86_64 and aarch64, and the target is {target}"));
    }
    let root = get("CARGO_MANIFEST_DIR")?;
    let out = Path::new(&get("OUT_DIR")?).join("prewarm-init");
    let rustc = get("RUSTC")?;

    let mut command = Command::new(&rustc);
    command
        .current_dir(&root)
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=prewarm_init", "--target", &target, "-o"])
        .arg(&out)
        .args(["-Cpanic=abort", "-Copt-level=2", "-Cdebuginfo=0", "-Cstrip=symbols", "-Ccodegen-units=1"])
        .args(["-Cforce-unwind-tables=no", "-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        // One page size for the file's layout, no sections that nobody reads: 4 KiB pages each cost memory.
        .args(["-Clink-arg=-Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,norelro,--no-eh-frame-hdr"])
        .arg(format!("--remap-path-prefix={root}="));
    if let Some(library) = sysroot(&rustc) {
        // With the rust-src component, rustc resolves core's paths to where that is installed.
        command.arg(format!("--remap-path-prefix={library}=/rust"));
    }
    if target.ends_with("-musl") {
        // Else this target brings its own crt1.o, with a `_start` of its own.
        command.arg("-Clink-self-contained=no");
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    command.arg("src/init/main.rs");

    let output = command.output().map_err(|e| format!("{rustc} does not run: {e}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    for line in messages.lines() {
        println!("cargo::{}={line}", if output.status.success() { "warning" } else { "error" });
    }
    if !output.status.success() {
        return Err(format!("{rustc}: {}", output.status));
    }
    Ok(())
}

fn sysroot(rustc: &str) -> Option<String> {
    let output = Command::new(rustc).args(["--print=sysroot"]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().to_owned())
}

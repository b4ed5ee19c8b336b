//! Links the guest as an image.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=@{}", std::env::var("DEP_FORAKER_GUEST_LINK").unwrap());
}

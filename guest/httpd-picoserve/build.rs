//! Links as a guest.

fn main() {
    println!("cargo::rustc-link-arg-bins=@{}", std::env::var("DEP_FORAKER_GUEST_LINK").unwrap());
}

//! Links as a guest: the library OS says how.

fn main() {
    println!("cargo::rustc-link-arg-bins=@{}", std::env::var("DEP_FORAKER_GUEST_LINK").unwrap());
}

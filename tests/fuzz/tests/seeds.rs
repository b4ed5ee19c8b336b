//! Every seed passes its target, without libFuzzer.

use std::fs;
use std::path::Path;

fn run(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(&folder).expect("a folder of seeds") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("a seed"));
        seeds += 1;
    }
    assert!(seeds > 0, "{} is empty", folder.display());
}

#[test]
fn image() {
    run("image", foraker_fuzz::image::run);
}

#[test]
fn frame() {
    run("frame", foraker_fuzz::frame::run);
}

#[test]
fn rings() {
    run("rings", foraker_fuzz::rings::run);
}

#[test]
fn guest_memory() {
    run("guest_memory", foraker_fuzz::guest_memory::run);
}

#[test]
fn http() {
    run("http", foraker_fuzz::http::run);
}

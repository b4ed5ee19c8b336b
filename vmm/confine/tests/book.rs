//! The book says what the tables say.

const CHAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/confinement.md");
const BEGIN: &str = "<!-- tables: begin -->\n";
const END: &str = "<!-- tables: end -->\n";

#[test]
fn the_chapter_has_the_tables() {
    let chapter = std::fs::read_to_string(CHAPTER).expect("the chapter");
    let (_, rest) = chapter.split_once(BEGIN).expect("where the tables begin");
    let (tables, _) = rest.split_once(END).expect("where they end");
    let generated = foraker_confine::book::reference();
    assert!(
        tables.trim() == generated.trim(),
        "docs/src/confinement.md is out of date: put the output of `cargo run -p foraker-confine --example tables` between its marks"
    );
}

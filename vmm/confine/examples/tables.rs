//! Prints the tables of system calls, as the book has them between its marks.

fn main() {
    print!("{}", foraker_confine::book::reference());
}

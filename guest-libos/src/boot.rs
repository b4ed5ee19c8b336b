//! Arguments and environment, as the VMM put them behind the registers or into the boot pages.

use crate::registers;

/// The bytes of all strings, arguments first.
fn strings() -> impl Iterator<Item = &'static [u8]> {
    let boot = &registers().boot;
    let size = (boot.size as usize).min(foraker_abi::layout::BOOT_SIZE as usize);
    let bytes: &'static [u8] = if size == 0 {
        &[]
    } else {
        #[cfg(not(test))]
        // SAFETY: the VMM maps so many bytes there, read-only and unchanged for the guest's whole life.
        unsafe {
            let start = foraker_abi::layout::REGISTERS + u64::from(boot.offset);
            core::slice::from_raw_parts(start as *const u8, size)
        }
        #[cfg(test)]
        crate::testing::boot_bytes()
    };
    bytes.split(|&b| b == 0)
}

/// The arguments; the first is the guest's name. One that is not UTF-8 reads as `"?"`.
pub fn args() -> impl Iterator<Item = &'static str> {
    let count = registers().boot.argument_count as usize;
    strings().take(count).map(|bytes| core::str::from_utf8(bytes).unwrap_or("?"))
}

/// The guest's name.
#[must_use]
pub fn name() -> &'static str {
    args().next().unwrap_or("guest")
}

/// All environment variables, as (name, value). Those that are not UTF-8 are left out.
pub fn environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let boot = &registers().boot;
    strings()
        .skip(boot.argument_count as usize)
        .take(boot.environment_count as usize)
        .filter_map(|bytes| core::str::from_utf8(bytes).ok()?.split_once('='))
}

/// An environment variable.
#[must_use]
pub fn env(name: &str) -> Option<&'static str> {
    environment().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_arguments_and_environment() {
        assert_eq!(super::args().collect::<Vec<_>>(), ["test", "one"]);
        assert_eq!((super::name(), super::env("KEY"), super::env("NONE")), ("test", Some("value"), None));
    }
}

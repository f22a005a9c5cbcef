//! `check`: is the configuration good, and what is in force?

use std::path::Path;

use crate::{EXIT_OK, config, wiring};

/// Prints the values in force, with their origins and without secrets.
///
/// # Errors
/// Everything that is wrong with the configuration.
pub(crate) fn check(file: Option<&Path>) -> anyhow::Result<u8> {
    let config = super::load_config(file)?;
    // What is only noticed when the parts are put together belongs to the check as well.
    wiring::worker_settings(&config, &wiring::Endpoints::new(&config)?)?;
    print!("{}", config::print(&config));
    for note in &config.notes {
        eprintln!("note: {note}");
    }
    Ok(EXIT_OK)
}

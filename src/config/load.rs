//! Finding the configuration and reading it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::fault::{Fault, Faults, Place, quoted};
use super::reader::{Outcome, Reading, Section};
use super::sections;
use super::source::Source;
use super::variables::{self, Variables};
use super::{BrokerConfig, Config, EngineConfig};

/// Where the file is looked for if nobody says where it is, in this order.
const PLACES: [&str; 2] = ["prewarm.toml", "/etc/prewarm/prewarm.toml"];

/// A larger file is not a configuration.
const LARGEST: u64 = 1 << 20;

const EXAMPLE: &str = "[pool.build]\nimage = \"busybox:1.36\"\n";

/// A configuration that is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that it is from; none if variables alone made it.
    pub path: Option<PathBuf>,
    /// Remarks that are no faults, such as that a pool isn't hardened.
    pub advice: Vec<String>,
}

/// Finds the configuration and reads it: the file `explicit` (`--config`), or else the one that
/// `PREWARM_CONFIG` names, `./prewarm.toml` or `/etc/prewarm/prewarm.toml`, and over it the `PREWARM_…`
/// variables of `environment`. Variables that define a pool suffice without a file.
///
/// # Errors
/// Everything that is wrong, with its place.
pub fn load(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, Faults> {
    load_from(explicit, environment, &PLACES.map(Path::new))
}

/// Finds the configuration as [`load()`] does, and reads no more of it than how to reach the broker: a
/// publisher has no pools, and needs no file.
///
/// # Errors
/// Everything that is wrong with it, with its place.
pub fn load_broker(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<BrokerConfig, Faults> {
    load_broker_from(explicit, environment, &PLACES.map(Path::new))
}

/// Finds the configuration as [`load()`] does, and reads no more of it than where containers run: who
/// names an image needs no pools, and no file.
///
/// # Errors
/// Everything that is wrong with it, with its place.
pub fn load_engine(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<EngineConfig, Faults> {
    let environment: Vec<_> = environment.into_iter().collect();
    load_section(explicit, &environment, &PLACES.map(Path::new), "PREWARM_ENGINE_", sections::engine_alone)
}

/// The process's environment for [`load`]. Unlike `std::env::vars`, it doesn't panic at a variable that
/// isn't UTF-8.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, text)| (name.to_string_lossy().into(), text.to_string_lossy().into()))
}

/// Reads a configuration from its text, with the variables of `environment` over it. The name is shown in
/// faults, and relative paths in the text start where it is.
///
/// # Errors
/// Everything that is wrong, with its place.
pub fn parse(
    name: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, Faults> {
    let environment: Vec<_> = environment.into_iter().collect();
    let (config, advice) = read_config(Some(&Source::new(name, text)), &Variables::pick(&environment))?;
    Ok(Loaded { config, path: Some(name.to_owned()), advice })
}

fn load_from(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    places: &[&Path],
) -> Result<Loaded, Faults> {
    let environment: Vec<_> = environment.into_iter().collect();
    let variables = Variables::pick(&environment);
    let Some((path, bytes)) = find(explicit, &environment, places)? else {
        if !variables.define_pools() {
            return Err(nothing_found(places));
        }
        let (config, advice) = read_config(None, &variables)?;
        return Ok(Loaded { config, path: None, advice });
    };
    let (config, advice) = read_config(Some(&Source::new(&path, decoded(&path, &bytes)?)), &variables)?;
    Ok(Loaded { config, path: Some(path), advice })
}

fn load_broker_from(
    explicit: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    places: &[&Path],
) -> Result<BrokerConfig, Faults> {
    let environment: Vec<_> = environment.into_iter().collect();
    load_section(explicit, &environment, places, "PREWARM_BROKER_", sections::broker_alone)
}

/// Reads one section, from a file if there is one; variables that start with `prefix` must all be known to it.
fn load_section<T>(
    explicit: Option<&Path>,
    environment: &[(String, String)],
    places: &[&Path],
    prefix: &str,
    fill: fn(&mut Section<'_, '_>) -> Outcome<T>,
) -> Result<T, Faults> {
    let variables = Variables::pick(environment);
    let found = find(explicit, environment, places)?;
    let source = match &found {
        Some((path, bytes)) => Some(Source::new(path, decoded(path, bytes)?)),
        None => None,
    };
    read(source.as_ref(), &variables, prefix, fill).map(|(section, _)| section)
}

/// The file that was named, or else the first that exists.
fn find(
    explicit: Option<&Path>,
    environment: &[(String, String)],
    places: &[&Path],
) -> Result<Option<(PathBuf, Vec<u8>)>, Faults> {
    if let Some(path) = explicit {
        let bytes = content(path).map_err(|error| unreadable(path, &error))?;
        return Ok(Some((path.to_owned(), bytes)));
    }
    let named = environment.iter().find(|(name, path)| name == variables::FILE && !path.is_empty());
    let Some((name, path)) = named else { return search(places) };
    match content(Path::new(path)) {
        Ok(bytes) => Ok(Some((PathBuf::from(path), bytes))),
        Err(error) => {
            let message = format!("{} can't be read: {error}", quoted(path));
            Err(Faults::one(Place::Variable(name.clone()), message))
        }
    }
}

/// The first file that exists. One that exists and can't be read is not passed over: somebody wrote it.
fn search(places: &[&Path]) -> Result<Option<(PathBuf, Vec<u8>)>, Faults> {
    for path in places {
        match content(path) {
            Ok(bytes) => return Ok(Some(((*path).to_owned(), bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    Ok(None)
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn decoded<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b str, Faults> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let place = Source::new(path, &valid).place(valid.trim_start_matches('\u{feff}').len());
        Faults::one(place, "not UTF-8: save the file in that encoding")
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Faults {
    Faults::one(Source::new(path, "").whole(), format!("can't be read: {error}"))
}

fn nothing_found(places: &[&Path]) -> Faults {
    let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
    let message = format!(
        "no configuration: there is no --config, no {}, and no file {}. The least that makes one:\n\n{EXAMPLE}",
        variables::FILE,
        places.join(" or ")
    );
    Faults::one(Place::Nowhere, message)
}

fn read_config(
    source: Option<&Source<'_>>,
    variables: &Variables<'_>,
) -> Result<(Config, Vec<String>), Faults> {
    read(source, variables, "", sections::config)
}

/// Reads what `fill` wants; variables that start with `prefix` must all be known to it.
fn read<T>(
    source: Option<&Source<'_>>,
    variables: &Variables<'_>,
    prefix: &str,
    fill: fn(&mut Section<'_, '_>) -> Outcome<T>,
) -> Result<(T, Vec<String>), Faults> {
    let table = match source {
        Some(source) => parsed(source)?,
        None => DeTable::new(),
    };
    let mut reading = Reading::new(source, variables);
    let filled = reading.root(&table, fill);
    reading.refuse_unknown_variables(prefix);
    let (faults, advice) = reading.findings();
    match filled {
        Ok(filled) if faults.is_empty() => Ok((filled, advice)),
        _ => Err(Faults::new(faults)),
    }
}

/// Faults of syntax end the reading: what a parser makes of the rest is guesswork, and would invent others.
fn parsed<'t>(source: &Source<'t>) -> Result<DeTable<'t>, Faults> {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    if errors.is_empty() {
        return Ok(table.into_inner());
    }
    let fault = |error: &toml::de::Error| Fault {
        place: error.span().map_or_else(|| source.whole(), |span| source.place(span.start)),
        key: String::new(),
        message: format!("not TOML: {}", error.message()),
    };
    Err(Faults::new(errors.iter().map(fault).collect()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory of its own, gone when dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn new(test: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("prewarm-config-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory for temporary files");
            Directory(path)
        }

        fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).expect("a file for the test");
            path
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn variable(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn the_first_place_that_has_a_file_is_taken() {
        let directory = Directory::new("places");
        let [option, named, first, second] =
            ["option", "named", "first", "second"].map(|name| directory.file(name, EXAMPLE));
        let places = [first.as_path(), second.as_path()];
        let named_by = || [variable(variables::FILE, named.to_str().expect("UTF-8"))];
        let path = |loaded: Result<Loaded, Faults>| loaded.expect("valid").path.expect("a file");

        assert_eq!(path(load_from(Some(&option), named_by(), &places)), option);
        assert_eq!(path(load_from(None, named_by(), &places)), named);
        assert_eq!(path(load_from(None, [variable(variables::FILE, "")], &places)), first);
        assert_eq!(path(load_from(None, [], &places)), first);
        fs::remove_file(&first).expect("it is there");
        assert_eq!(path(load_from(None, [], &places)), second);
    }

    #[test]
    fn without_a_file_the_fault_says_what_to_do() {
        let nowhere = [Path::new("/nonexistent/a.toml"), Path::new("/nonexistent/b.toml")];
        let fault = load_from(None, [], &nowhere).expect_err("nothing").to_string();
        for part in ["--config", "PREWARM_CONFIG", "/nonexistent/a.toml or /nonexistent/b.toml", EXAMPLE] {
            assert!(fault.contains(part), "{fault}");
        }
        parse(Path::new("x"), EXAMPLE, []).expect("the example is valid");

        let loaded = load_from(None, [variable("PREWARM_POOL_BUILD_IMAGE", "x")], &nowhere).expect("a pool");
        assert_eq!((loaded.path, loaded.config.pools.len()), (None, 1));
        let faults =
            load_from(None, [variable("PREWARM_POOL_BUILD_MEMORY", "x")], &nowhere).expect_err("no image");
        let faults = faults.to_string();
        assert!(faults.starts_with("no pool is configured"), "{faults}");
        assert!(
            faults.contains("PREWARM_POOL_BUILD_MEMORY: unknown variable: no pool has such a key"),
            "{faults}"
        );
    }

    #[test]
    fn a_file_that_was_named_must_be_readable() {
        let missing = Path::new("/nonexistent/x.toml");
        let fault = load_from(Some(missing), [], &[]).expect_err("missing").to_string();
        assert!(fault.starts_with("/nonexistent/x.toml: can't be read: No such file"), "{fault}");
        let named = [variable(variables::FILE, "/nonexistent/x.toml")];
        let fault = load_from(None, named, &[]).expect_err("missing").to_string();
        assert!(fault.starts_with("PREWARM_CONFIG: '/nonexistent/x.toml' can't be read"), "{fault}");
        let directory = Directory::new("directory");
        let fault = load_from(None, [], &[&directory.0]).expect_err("a directory").to_string();
        assert!(fault.contains("can't be read: Is a directory"), "{fault}");
        let fault = load_from(Some(Path::new("/dev/zero")), [], &[]).expect_err("endless").to_string();
        assert!(fault.contains("larger than 1 MiB"), "{fault}");
    }

    #[test]
    fn a_publisher_needs_no_pools_and_no_file() {
        let url = |found: Result<BrokerConfig, Faults>| found.expect("valid").urls.join(" ");
        assert_eq!(url(load_broker_from(None, [], &[])), "amqp://guest:guest@127.0.0.1:5672/%2f");
        let variables = [
            variable("PREWARM_BROKER_URL", "amqp://other"),
            variable("PREWARM_POOL_BUILD_MEMORY", "of no interest"),
        ];
        assert_eq!(url(load_broker_from(None, variables, &[])), "amqp://other");

        let directory = Directory::new("publisher");
        let load = |text: &str| load_broker_from(Some(&directory.file("x.toml", text)), [], &[]);
        assert_eq!(url(load("[broker]\nurl = \"amqp://h\"\n[pool.a]\nidle = \"x\"")), "amqp://h");
        let fault = load("[brokr]\n").expect_err("misspelt").to_string();
        assert!(fault.ends_with(":1:2: unknown section 'brokr'; did you mean 'broker'?"), "{fault}");
        let variables = [variable("PREWARM_BROKER_URI", "amqp://other")];
        let fault = load_broker_from(None, variables, &[]).expect_err("misspelt").to_string();
        assert_eq!(fault, "PREWARM_BROKER_URI: unknown variable; did you mean 'PREWARM_BROKER_URL'?");
    }

    #[test]
    fn what_is_not_utf_8_has_a_place() {
        let directory = Directory::new("encoding");
        let path = directory.file("x.toml", b"\xef\xbb\xbfa = 1\nb = \"\xc3\xa9\xff\"\n");
        let fault = load_from(Some(&path), [], &[]).expect_err("not UTF-8").to_string();
        assert_eq!(fault, format!("{}:2:7: not UTF-8: save the file in that encoding", path.display()));
    }

    #[test]
    fn a_seccomp_profile_is_read_from_beside_the_file() {
        let directory = Directory::new("seccomp");
        directory.file("profile.json", "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n");
        directory.file("bad.json", "[1, secret]");
        directory.file("list.json", "[]");
        let load = |profile: &str| {
            let text = format!("{EXAMPLE}security_opt = [\"seccomp={profile}\"]\n");
            load_from(Some(&directory.file("x.toml", text)), [], &[])
        };
        let pool = load("profile.json").expect("valid").config.pools.into_values().next().expect("a pool");
        assert_eq!(pool.security_opt, ["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]);
        for (profile, fault) in
            [("bad.json", "is not JSON"), ("list.json", "is not a JSON object"), ("none", "can't be read")]
        {
            let found = load(profile).expect_err(profile).to_string();
            assert!(found.contains(fault) && !found.contains("secret"), "{found}");
        }
    }
}

//! The cloud of this test process: as strict as a real one (`rules.rs`), with moto's EC2 and S3, and machines of
//! QEMU's, each of which boots the image by its own boot loader and has a metadata service in a network of its own.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::machine::Machine;
use super::metadata::Metadata;
use super::moto::{Fate, Moto, Proxy, Request, KEY, REGION, STORE};
use super::rules::{access_key, check_new, check_signed, Refused};
use super::{boot_disk, eventually, site};

/// One of those that moto has. Its machines boot [`boot_disk`].
pub(crate) const IMAGE: &str = "ami-03cf127a";
const BUCKET: &str = "jobs-of-all-tests";

/// The same for all tests; each run is a tenant of its own.
#[derive(Debug)]
pub(crate) struct Cloud {
    moto: Arc<Moto>,
    address: String,
    state: Arc<Mutex<State>>,
    orders: Sender<Order>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that run, by their ids.
    machines: HashMap<String, Instance>,
    /// By access keys.
    accounts: HashMap<String, Account>,
}

#[derive(Debug)]
struct Instance {
    machine: Machine,
    _metadata: Metadata,
}

/// What somebody has asked for.
#[derive(Debug, Default)]
struct Account {
    machines: Vec<String>,
    /// What the names of their objects begin with.
    jobs: HashSet<String>,
}

#[derive(Debug)]
enum Order {
    Boot {
        id: String,
        user_data: String,
        /// The bucket's address, here.
        store: String,
    },
    End(String),
}

/// The cloud; `None` when there is nothing to make it of.
pub(crate) fn cloud() -> Option<&'static Cloud> {
    static CLOUD: OnceLock<Option<Cloud>> = OnceLock::new();
    CLOUD.get_or_init(Cloud::start).as_ref()
}

impl Cloud {
    fn start() -> Option<Self> {
        let image = boot_disk()?;
        let (orders, received) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::default()));
        let all = Arc::clone(&state);
        // What it starts ends with it, and it ends with the test process.
        std::thread::spawn(move || {
            let moto = Moto::start().map(Arc::new);
            ready.send(moto.clone()).unwrap();
            let keeper = moto.map(|moto| Keeper {
                moto,
                state: all,
                image: image.to_owned(),
            });
            if let Some(keeper) = keeper {
                keeper.obey(&received);
            }
        });
        let moto = started.recv().unwrap()?;
        moto.make_bucket(BUCKET);
        let (all, order) = (Arc::clone(&state), orders.clone());
        let proxy = Proxy::forgetful(&moto.address, move |request| {
            let decided = decide(request, &all, order.clone());
            decided.unwrap_or_else(|refused| refuse(request, &refused))
        });
        Some(Cloud {
            moto,
            address: proxy.address,
            state,
            orders,
        })
    }

    /// One of the many that use it.
    pub(crate) fn tenant(&'static self, number: u32) -> Tenant {
        Tenant {
            cloud: self,
            key: format!("AKIDRUN{number}"),
        }
    }
}

/// Who uses the cloud, by an access key of their own: what they ask for is known by that. When it is dropped their
/// machines end.
#[derive(Debug)]
pub(crate) struct Tenant {
    cloud: &'static Cloud,
    key: String,
}

impl Tenant {
    /// The environment of their launcher.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let endpoint = format!("http://{}", self.cloud.address);
        vec![
            ("APPPOT_IMAGE", IMAGE.into()),
            ("APPPOT_EC2_BUCKET", BUCKET.into()),
            ("AWS_ENDPOINT_URL", endpoint.into()),
            ("AWS_REGION", REGION.into()),
            (KEY[0].0, OsString::from(&self.key)),
            (KEY[1].0, KEY[1].1.into()),
        ]
    }

    /// The process of their machine that runs.
    pub(crate) fn machine(&self) -> Option<u32> {
        self.look(|machine| machine.pid()).first().copied()
    }

    /// What their machines that run have said.
    pub(crate) fn consoles(&self) -> String {
        self.look(Machine::says).concat()
    }

    fn look<T>(&self, at: impl Fn(&Machine) -> T) -> Vec<T> {
        let state = self.cloud.state.lock().unwrap();
        let account = state.accounts.get(&self.key);
        let ids = account.iter().flat_map(|account| &account.machines);
        let running = ids.filter_map(|id| state.machines.get(id));
        running.map(|instance| at(&instance.machine)).collect()
    }

    /// Panics unless all that they have asked for is gone: machines, also as EC2 sees it, and objects.
    pub(crate) fn assert_nothing_is_left(self) {
        eventually("the machine is gone", || self.machine().is_none());
        let mut state = self.cloud.state.lock().unwrap();
        let account = state.accounts.remove(&self.key).unwrap_or_default();
        drop(state);
        let moto = &self.cloud.moto;
        for id in &account.machines {
            let ask = format!("Action=DescribeInstances&InstanceId.1={id}");
            eventually("EC2 knows that it is gone", || {
                moto.ec2(&ask).contains("<name>terminated</name>")
            });
        }
        for job in &account.jobs {
            let listed = moto.s3(&format!("/{BUCKET}?list-type=2&prefix={job}"));
            assert!(!listed.contains("<Key>"), "objects are left: {listed}");
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let Ok(state) = self.cloud.state.lock() else {
            return;
        };
        let account = state.accounts.get(&self.key);
        for id in account.iter().flat_map(|account| &account.machines) {
            let _ = self.cloud.orders.send(Order::End(id.clone()));
        }
    }
}

/// Whom the machines belong to: they end with its thread.
struct Keeper {
    moto: Arc<Moto>,
    state: Arc<Mutex<State>>,
    image: PathBuf,
}

impl Keeper {
    fn obey(&self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(Duration::from_millis(200)) {
                Ok(Order::Boot {
                    id,
                    user_data,
                    store,
                }) => self.boot(id, &user_data, &store),
                Ok(Order::End(id)) => drop(self.state.lock().unwrap().machines.remove(&id)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.forget_ended();
        }
    }

    fn boot(&self, id: String, user_data: &str, store: &str) {
        let user_data = user_data.replace(store, STORE);
        let metadata = Metadata::start(Duration::ZERO, &user_data).with_store(store);
        let console = site().unwrap().stage.join(format!("console-{id}"));
        let instance = Instance {
            machine: Machine::of_image(console, &self.image, &metadata.args()),
            _metadata: metadata,
        };
        self.state.lock().unwrap().machines.insert(id, instance);
    }

    /// EC2 hears of machines that have powered themselves off, or were killed.
    fn forget_ended(&self) {
        let mut state = self.state.lock().unwrap();
        let ended = |(id, instance): (&String, &mut Instance)| {
            instance.machine.has_ended().then(|| id.clone())
        };
        let ended: Vec<String> = state.machines.iter_mut().filter_map(ended).collect();
        state.machines.retain(|id, _| !ended.contains(id));
        drop(state);
        for id in ended {
            self.moto
                .ec2(&format!("Action=TerminateInstances&InstanceId.1={id}"));
        }
    }
}

/// What becomes of a request; what it is about is noted.
fn decide(
    request: &Request,
    state: &Arc<Mutex<State>>,
    orders: Sender<Order>,
) -> Result<Fate, Refused> {
    check_signed(request)?;
    let Some(key) = access_key(request).map(str::to_owned) else {
        return Ok(Fate::Pass);
    };
    match &request.what[..] {
        "EC2 RunInstances" => {
            let (user_data, state) = (check_new(request)?, Arc::clone(state));
            let store = request.headers["host"].clone();
            Ok(Fate::Show(Box::new(move |answer| {
                let Some(id) = between(answer, "<instanceId>", "<") else {
                    return;
                };
                let mut state = state.lock().unwrap();
                let account = state.accounts.entry(key).or_default();
                account.machines.push(id.to_owned());
                let id = id.to_owned();
                let boot = Order::Boot {
                    id,
                    user_data,
                    store,
                };
                orders.send(boot).unwrap();
            })))
        }
        "EC2 TerminateInstances" => {
            let all = (1..).map_while(|number| request.parameter(&format!("InstanceId.{number}")));
            let all: Vec<String> = all.collect();
            Ok(Fate::Show(Box::new(move |_| {
                for id in all {
                    orders.send(Order::End(id)).unwrap();
                }
            })))
        }
        what => {
            let start = format!("PUT /{BUCKET}/apppot/");
            if let Some((job, _)) = what
                .strip_prefix(&start)
                .and_then(|rest| rest.split_once('/'))
            {
                let mut state = state.lock().unwrap();
                let account = state.accounts.entry(key).or_default();
                account.jobs.insert(format!("apppot/{job}/"));
            }
            Ok(Fate::Pass)
        }
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// As the service says it that was asked.
fn refuse(request: &Request, (code, why): &Refused) -> Fate {
    let error = format!("<Error><Code>{code}</Code><Message>{why}</Message></Error>");
    match request.what.starts_with("EC2 ") {
        true => Fate::Answer(
            400,
            format!("<Response><Errors>{error}</Errors></Response>"),
        ),
        false => Fate::Answer(403, error),
    }
}

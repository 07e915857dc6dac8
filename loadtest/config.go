package loadtest

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Bounds of a run, so that its memory is bounded too: a connection costs about 20 KB, a key what requestBytes says.
const (
	concurrencyMax  = 10_000
	keysMax         = 100_000
	rateMax         = 1e6 // requests per second
	stepsMax        = 1000
	endpointsMax    = 64
	durationMax     = 24 * time.Hour
	timeoutMax      = 5 * time.Minute
	memoryMax       = 512 << 20 // bytes of all requests together, bodies and signed forms
	dataKeyBytesMax = 1024      // NumberOfBytes of GenerateDataKey*; the service model's bound
)

// Key distributions.
const (
	Uniform = "uniform"
	Zipf    = "zipf"
)

// Profiles of an open loop: how its rate moves over the measured window.
const (
	Constant = "constant" // Rate
	Ramp     = "ramp"     // evenly from Rate to RateTo
	Step     = "step"     // Steps stretches of equal length, the first at Rate, the last at RateTo, the rises between them equal
)

// Config describes one run. The zero value of a field is not its default: DefaultConfig has those.
type Config struct {
	Endpoints       []string      // http(s)://host[:port], nodes with the same keys; none is AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL, then the Region's AWS endpoint
	Region          string        // signing Region; "" is the AWS chain's
	CAFile          string        // PEM roots for a TLS endpoint; "" is the system's
	Operation       string        // a name in Operations
	Concurrency     int           // connections, each with at most one request on its way; connection i goes to endpoint i modulo their number
	Duration        time.Duration // measured window
	Warmup          time.Duration // before it; sent and checked, not counted
	Timeout         time.Duration // of one request, and of a connection attempt
	Rate            float64       // requests per second in all; 0 is a closed loop
	Profile         string        // Constant, Ramp or Step
	RateTo          float64       // requests per second at the end of a Ramp or Step
	Steps           int           // of Step
	Keys            int           // KMS keys to find or create as alias/keyplane-loadtest-<i>
	KeyIDs          []string      // keys to use instead: IDs, ARNs or aliases
	KeyDistribution string        // Uniform or Zipf
	Payload         int           // bytes: plaintext (Encrypt, Decrypt), data key or random bytes
	Verify          bool          // compare plaintexts, lengths and key ARNs
	Cleanup         bool          // schedule the deletion of the keys this run created
	Progress        io.Writer     // one line a second; nil is none

	grace time.Duration // a stopped run waits this long for answers that are on their way; tests change it
}

// DefaultConfig is a closed loop of GenerateDataKey on one key.
func DefaultConfig() Config {
	return Config{
		Operation:       "GenerateDataKey",
		Concurrency:     64,
		Duration:        10 * time.Second,
		Warmup:          2 * time.Second,
		Timeout:         10 * time.Second,
		Profile:         Constant,
		Steps:           10,
		Keys:            1,
		KeyDistribution: Uniform,
		Payload:         32,
		Verify:          true,
		grace:           stopGrace,
	}
}

// validate reports every fault at once.
func (c *Config) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	op := findOperation(c.Operation)
	if op == nil {
		fault("operation must be one of %s", strings.Join(Operations(), ", "))
	} else if c.Payload < 1 || c.Payload > op.payloadMax {
		fault("payload of %s must be 1 to %d bytes", op.name, op.payloadMax)
	}
	if c.Concurrency < 1 || c.Concurrency > concurrencyMax {
		fault("concurrency must be 1 to %d", concurrencyMax)
	}
	if c.Duration <= 0 || c.Duration > durationMax {
		fault("duration must be more than 0 and at most %v", durationMax)
	}
	if c.Warmup < 0 || c.Warmup > durationMax {
		fault("warm-up must be 0 to %v", durationMax)
	}
	if c.Timeout <= 0 || c.Timeout > timeoutMax {
		fault("timeout must be more than 0 and at most %v", timeoutMax)
	}
	if c.Rate < 0 || c.Rate > rateMax || math.IsNaN(c.Rate) {
		fault("rate must be 0 (closed loop) to %d requests per second", int(rateMax))
	}
	switch c.Profile {
	case Constant:
		if c.RateTo != 0 {
			fault("a rate to end with needs the profile %s or %s", Ramp, Step)
		}
	case Ramp, Step:
		if c.Rate == 0 {
			fault("profile %s needs a rate to begin with", c.Profile)
		}
		if !(c.RateTo > 0 && c.RateTo <= rateMax) {
			fault("rate to end with must be more than 0 and at most %d requests per second", int(rateMax))
		}
		if c.Profile == Step && (c.Steps < 2 || c.Steps > stepsMax) {
			fault("steps must be 2 to %d", stepsMax)
		}
	default:
		fault("profile must be %s, %s or %s", Constant, Ramp, Step)
	}
	if n := max(c.Keys, len(c.KeyIDs)); n < 1 || n > keysMax {
		fault("keys must be 1 to %d", keysMax)
	} else if n*requestBytes(c.Payload)*max(len(c.Endpoints), 1) > memoryMax {
		fault("so many keys and endpoints with so large a payload need more than %d MiB of signed requests", memoryMax>>20)
	}
	for _, id := range c.KeyIDs {
		if id == "" || len(id) > kmsapi.KeyIDMax {
			fault("a key ID must have 1 to %d characters", kmsapi.KeyIDMax)
		}
	}
	if c.KeyDistribution != Uniform && c.KeyDistribution != Zipf {
		fault("key distribution must be %s or %s", Uniform, Zipf)
	}
	faults = append(faults, c.validateEndpoints()...)
	return errors.Join(faults...)
}

func (c *Config) validateEndpoints() (faults []error) {
	if n := len(c.Endpoints); n > endpointsMax {
		return []error{fmt.Errorf("endpoints must be at most %d", endpointsMax)}
	} else if n > c.Concurrency {
		faults = append(faults, errors.New("concurrency must be at least one connection for each endpoint"))
	}
	seen := make(map[string]bool)
	for _, s := range c.Endpoints {
		to, err := parseEndpoint(s)
		if err != nil {
			faults = append(faults, err)
		} else if seen[to.url] {
			faults = append(faults, fmt.Errorf("endpoint %s is named twice", to.url))
		}
		seen[to.url] = true
	}
	return faults
}

// requestBytes estimates what one target keeps: headers, and the payload in base64 with a blob's overhead, once as body and once signed.
func requestBytes(payload int) int { return 1<<10 + 2*(payload+256)*4/3 }

// endpoint is where requests go.
type endpoint struct {
	url     string // scheme://host, as reported
	host    string // Host header: without the scheme's default port, as SigV4 signs it
	address string // host:port to dial
	name    string // host alone, for TLS
	tls     bool
}

// parseEndpoint accepts http and https URLs that name a host and nothing else: KMS has the one path "/".
func parseEndpoint(s string) (endpoint, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return endpoint{}, errors.New("endpoint must be a URL such as http://127.0.0.1:4599")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return endpoint{}, errors.New("endpoint must start with http:// or https://")
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return endpoint{}, errors.New("endpoint must have no path, query or user")
	}
	port, standard := u.Port(), "80"
	if u.Scheme == "https" {
		standard = "443"
	}
	host := u.Host
	if port == "" || port == standard {
		port, host = standard, strings.TrimSuffix(u.Host, ":"+u.Port())
	}
	name := u.Hostname()
	address := name + ":" + port
	if strings.Contains(name, ":") {
		address = "[" + name + "]:" + port
	}
	return endpoint{url: u.Scheme + "://" + host, host: host, address: address, name: name, tls: u.Scheme == "https"}, nil
}

// regionalEndpoint is AWS's KMS endpoint of a Region.
func regionalEndpoint(region string) string {
	suffix := ".amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		suffix += ".cn"
	}
	return "https://kms." + region + suffix
}

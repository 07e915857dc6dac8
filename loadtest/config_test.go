package loadtest

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Each bound holds at the limit and refuses one more.
func TestConfigLimits(t *testing.T) {
	for _, c := range []struct {
		name string
		ok   bool
		set  func(*Config)
	}{
		{"default", true, func(*Config) {}},
		{"operation", false, func(c *Config) { c.Operation = "CreateKey" }},
		{"concurrency", false, func(c *Config) { c.Concurrency = 0 }},
		{"concurrency", true, func(c *Config) { c.Concurrency = concurrencyMax }},
		{"concurrency", false, func(c *Config) { c.Concurrency = concurrencyMax + 1 }},
		{"duration", false, func(c *Config) { c.Duration = 0 }},
		{"duration", true, func(c *Config) { c.Duration = durationMax }},
		{"duration", false, func(c *Config) { c.Duration = durationMax + 1 }},
		{"warm-up", true, func(c *Config) { c.Warmup = 0 }},
		{"warm-up", false, func(c *Config) { c.Warmup = -1 }},
		{"warm-up", false, func(c *Config) { c.Warmup = durationMax + 1 }},
		{"timeout", false, func(c *Config) { c.Timeout = 0 }},
		{"timeout", true, func(c *Config) { c.Timeout = timeoutMax }},
		{"timeout", false, func(c *Config) { c.Timeout = timeoutMax + 1 }},
		{"rate", true, func(c *Config) { c.Rate = rateMax }},
		{"rate", false, func(c *Config) { c.Rate = rateMax + 1 }},
		{"rate", false, func(c *Config) { c.Rate = -1 }},
		{"keys", false, func(c *Config) { c.Keys = 0 }},
		{"keys", true, func(c *Config) { c.Keys = keysMax }},
		{"keys", false, func(c *Config) { c.Keys = keysMax + 1 }},
		{"keys", false, func(c *Config) { c.Keys, c.Operation, c.Payload = keysMax, "Encrypt", 4096 }},
		{"key ID", false, func(c *Config) { c.KeyIDs = []string{"a", ""} }},
		{"key ID", true, func(c *Config) { c.KeyIDs = []string{strings.Repeat("a", 2048)} }},
		{"key ID", false, func(c *Config) { c.KeyIDs = []string{strings.Repeat("a", 2049)} }},
		{"distribution", false, func(c *Config) { c.KeyDistribution = "pareto" }},
		{"payload", true, func(c *Config) { c.Payload = 1024 }},
		{"payload", false, func(c *Config) { c.Payload = 1025 }},
		{"payload", false, func(c *Config) { c.Payload = 0 }},
		{"payload", true, func(c *Config) { c.Operation, c.Payload = "Encrypt", 4096 }},
		{"payload", false, func(c *Config) { c.Operation, c.Payload = "Encrypt", 4097 }},
		{"payload", true, func(c *Config) { c.Operation, c.Payload = "Decrypt", 4096 }},
		{"payload", false, func(c *Config) { c.Operation, c.Payload = "GenerateRandom", 1025 }},
		{"endpoint", false, func(c *Config) { c.Endpoints = []string{"localhost:4599"} }},
	} {
		cfg := DefaultConfig()
		c.set(&cfg)
		if err := cfg.validate(); (err == nil) != c.ok || (err != nil && !strings.Contains(err.Error(), strings.Fields(c.name)[0])) {
			t.Errorf("%s: %v, want ok = %v (%+v)", c.name, err, c.ok, cfg)
		}
	}
	var empty Config
	if err := empty.validate(); err == nil || strings.Count(err.Error(), "\n") != 6 {
		t.Errorf("not every fault is named: %v", err)
	}
}

func TestParseEndpoint(t *testing.T) {
	for _, c := range []struct{ in, url, host, address, name string }{
		{"http://127.0.0.1:4599", "http://127.0.0.1:4599", "127.0.0.1:4599", "127.0.0.1:4599", "127.0.0.1"},
		{"http://kms.example/", "http://kms.example", "kms.example", "kms.example:80", "kms.example"},
		{"http://kms.example:80", "http://kms.example", "kms.example", "kms.example:80", "kms.example"},
		{"https://kms.example:443", "https://kms.example", "kms.example", "kms.example:443", "kms.example"},
		{"https://kms.example:80", "https://kms.example:80", "kms.example:80", "kms.example:80", "kms.example"},
		{"https://[::1]:4599", "https://[::1]:4599", "[::1]:4599", "[::1]:4599", "::1"},
		{"https://[::1]", "https://[::1]", "[::1]", "[::1]:443", "::1"},
	} {
		got, err := parseEndpoint(c.in)
		want := endpoint{url: c.url, host: c.host, address: c.address, name: c.name, tls: strings.HasPrefix(c.in, "https")}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", c.in, got, err, want)
		}
	}
	for _, in := range []string{"", "127.0.0.1:4599", "kms", "ftp://kms", "http://", "http://:80", "http://kms/path", "http://kms?x=1", "http://kms#x", "http://user@kms", "http://%zz", "http://k:port"} {
		if got, err := parseEndpoint(in); err == nil {
			t.Errorf("%q is accepted: %+v", in, got)
		}
	}
}

// The order of sources: flag, service variable, general variable, shared configuration, the Region's own endpoint.
func TestResolve(t *testing.T) {
	setAWSEnvironment(t)
	chain := &aws.Config{Region: "eu-west-1"}
	resolved := func(cfg Config) Config {
		t.Helper()
		if err := resolve(&cfg, chain); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	if got := resolved(Config{}); got.Endpoints[0] != "https://kms.eu-west-1.amazonaws.com" || got.Region != "eu-west-1" {
		t.Errorf("%+v", got)
	}
	if got := resolved(Config{Region: "cn-north-1"}); got.Endpoints[0] != "https://kms.cn-north-1.amazonaws.com.cn" {
		t.Errorf("%+v", got)
	}
	chain.BaseEndpoint = aws.String("http://shared")
	if got := resolved(Config{}); got.Endpoints[0] != "http://shared" {
		t.Errorf("%+v", got)
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://general")
	if got := resolved(Config{}); got.Endpoints[0] != "http://general" {
		t.Errorf("%+v", got)
	}
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms")
	if got := resolved(Config{}); got.Endpoints[0] != "http://kms" {
		t.Errorf("%+v", got)
	}
	if got := resolved(Config{Endpoints: []string{"http://flag"}}); got.Endpoints[0] != "http://flag" {
		t.Errorf("%+v", got)
	}
	chain.Region = ""
	if got := resolved(Config{}); got.Region != "us-east-1" {
		t.Errorf("%+v", got)
	}
	t.Setenv("AWS_ENDPOINT_URL", "")
	t.Setenv("AWS_ENDPOINT_URL_KMS", "")
	if err := resolve(&Config{}, &aws.Config{}); err == nil {
		t.Error("neither endpoint nor Region, and no error")
	}
}

func TestMissingCredentials(t *testing.T) {
	setAWSEnvironment(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	start := time.Now()
	if _, err := Run(t.Context(), testConfig("http://127.0.0.1:1")); err == nil || !strings.HasPrefix(err.Error(), "AWS credentials: ") {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

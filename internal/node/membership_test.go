package node

import (
	"strings"
	"testing"
)

// What a process of a cluster needs is asked for, and what `keyplane serve` has not is refused.
func TestValidateCluster(t *testing.T) {
	for name, c := range map[string]struct {
		change        func(*Config)
		control, data string // in the error; "" for none
	}{
		"all":               {func(*Config) {}, "", ""},
		"no etcd":           {func(c *Config) { c.Etcd.Endpoints = nil }, "etcd.endpoints: missing", "etcd.endpoints: missing"},
		"etcd without port": {func(c *Config) { c.Etcd.Endpoints = []string{"https://e1"} }, "is not https://host:port", "is not https://host:port"},
		"etcd both ways":    {func(c *Config) { c.Etcd.Endpoints = []string{"https://e1:1", "http://e2:1"} }, "some are https://", "some are https://"},
		"half of a pair":    {func(c *Config) { c.Etcd.Cert = "x" }, "etcd.cert and key", "etcd.cert and key"},
		"no control plane":  {func(c *Config) { c.Planes.Control = nil }, "", "planes.control: missing"},
		"plain control":     {func(c *Config) { c.Planes.Control = []string{"http://c1:1"} }, "planes.control: ", "planes.control: "},
		"no listener":       {func(c *Config) { c.Planes.Listen = "" }, "planes.listen", ""},
		"no certificate":    {func(c *Config) { c.Planes.Cert = "" }, "planes.cert, key and ca", "planes.cert, key and ca"},
	} {
		cfg := Config{Etcd: EtcdConfig{Endpoints: []string{"https://e1:2379"}}, Planes: PlanesConfig{Listen: ":1", Control: []string{"https://c1:1"}, Cert: "a", Key: "b", CA: "c"}}
		c.change(&cfg)
		cfg.Defaults()
		for _, v := range []struct {
			validate func() error
			want     string
		}{{cfg.ValidateControl, c.control}, {cfg.ValidateData, c.data}} {
			err := v.validate()
			if v.want == "" && err != nil || v.want != "" && (err == nil || !strings.Contains(err.Error(), v.want)) {
				t.Errorf("%s: %v, want %q", name, err, v.want)
			}
		}
	}
	cfg := Config{Etcd: EtcdConfig{Endpoints: []string{"https://e1:2379"}}}
	cfg.Defaults()
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "etcd.endpoints") {
		t.Error(err)
	}
}

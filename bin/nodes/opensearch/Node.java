// One OpenSearch node from its published jars: no archive, no container. Started by bin/opensearch.
// System properties: node.home (lib/, config/), node.data, node.port; node.until.eof=true: end when standard input
// does. Arguments: setting=value.
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import org.apache.logging.log4j.Level;
import org.apache.logging.log4j.core.config.Configurator;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.plugins.Plugin;
import org.opensearch.transport.Netty4Plugin;

public class Node {
    /** The server's constructor that takes plugins from the class path is for its heirs. */
    private static class FromClassPath extends org.opensearch.node.Node {
        FromClassPath(Environment environment, Collection<Class<? extends Plugin>> plugins) {
            super(environment, plugins, true);
        }
    }

    public static void main(String[] settings) throws Exception {
        if (Boolean.getBoolean("node.until.eof")) {
            Input.endWithIt();
        }
        Configurator.setRootLevel(Level.WARN);
        Path home = Path.of(System.getProperty("node.home"));
        int port = Integer.getInteger("node.port");
        Settings.Builder builder = Settings.builder()
            .put("path.home", home.toString())
            .put("path.data", System.getProperty("node.data"))
            .put("cluster.name", "outbox-relay")
            .put("node.name", "node-1")
            .put("discovery.type", "single-node")
            .put("http.type", "netty4")
            .put("transport.type", "netty4")
            .put("http.port", port)
            .put("transport.port", "0")
            // A developer's disk is often fuller than a server's may be.
            .put("cluster.routing.allocation.disk.threshold_enabled", false);
        for (String setting : settings) {
            int at = setting.indexOf('=');
            builder.put(setting.substring(0, at), setting.substring(at + 1));
        }
        Environment environment = InternalSettingsPreparer.prepareEnvironment(
            builder.build(), Map.of(), home.resolve("config"), () -> "node-1");
        var node = new FromClassPath(environment, List.of(Netty4Plugin.class));
        node.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { node.close(); } catch (Exception e) { e.printStackTrace(); }
        }));
        System.out.println("opensearch listens on http://127.0.0.1:" + port);
        Thread.currentThread().join();
    }
}

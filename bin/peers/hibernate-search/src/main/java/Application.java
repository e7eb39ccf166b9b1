import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.hibernate.SessionFactory;
import org.hibernate.cfg.Configuration;

/**
 * An application with Hibernate Search and outbox polling.
 *
 * <pre>
 * java Application create           makes the tables and the index
 * java Application process          processes events until its input ends
 * java Application write RATE       writes the rows of its input, each in a transaction, and says when it was committed;
 *                                   RATE 0: a thousand in each transaction, as fast as it can
 * java Application cost NUMBER      what a transaction takes without and with Hibernate Search, in microseconds
 * </pre>
 *
 * What else it is to know are the Java properties that begin with `hibernate.`.
 */
public class Application {
    static final ObjectMapper JSON = new ObjectMapper();
    static final PrintStream OUT = new PrintStream(System.out, false);

    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "create" -> factory(Map.of("hibernate.hbm2ddl.auto", "create", ENABLED, "false")).close();
            case "process" -> process();
            case "write" -> write(Integer.parseInt(arguments[1]));
            case "cost" -> cost(Integer.parseInt(arguments[1]));
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    static final String ENABLED = "hibernate.search.coordination.event_processor.enabled";

    static SessionFactory factory(Map<String, String> more) {
        Configuration configuration = new Configuration().addAnnotatedClass(Contact.class);
        configuration.setProperty("hibernate.search.coordination.strategy", "outbox-polling");
        System.getProperties().forEach((name, value) -> {
            if (name.toString().startsWith("hibernate.")) {
                configuration.setProperty(name.toString(), value.toString());
            }
        });
        more.forEach(configuration::setProperty);
        return configuration.buildSessionFactory();
    }

    static void process() throws Exception {
        try (SessionFactory factory = factory(Map.of())) {
            OUT.println("ready");
            OUT.flush();
            while (System.in.read() >= 0) {}
        }
    }

    static void write(int rate) throws Exception {
        List<Contact> contacts = contacts();
        try (SessionFactory factory = factory(Map.of(ENABLED, "false"))) {
            OUT.println("ready");
            OUT.flush();
            if (rate == 0) {
                for (int at = 0; at < contacts.size(); at += 1000) {
                    persist(factory, contacts.subList(at, Math.min(at + 1000, contacts.size())));
                }
                return;
            }
            long first = System.nanoTime();
            for (int at = 0; at < contacts.size(); at++) {
                long wait = first + at * 1_000_000_000L / rate - System.nanoTime();
                if (wait > 0) {
                    Thread.sleep(wait / 1_000_000, (int) (wait % 1_000_000));
                }
                persist(factory, contacts.subList(at, at + 1));
                OUT.println(contacts.get(at).id + " " + ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now()));
                OUT.flush();
            }
        }
    }

    static void cost(int number) throws Exception {
        List<Contact> contacts = contacts();
        Map<String, long[][]> took = new HashMap<>();
        try (SessionFactory without = factory(Map.of("hibernate.search.enabled", "false"));
                SessionFactory with = factory(Map.of(ENABLED, "false"))) {
            Map<String, SessionFactory> both = Map.of("without", without, "with", with);
            both.keySet().forEach(each -> took.put(each, new long[2][number]));
            ThreadMXBean threads = ManagementFactory.getThreadMXBean();
            for (int at = -number; at < number; at++) { // the first half warms up
                for (String each : at % 2 == 0 ? List.of("without", "with") : List.of("with", "without")) {
                    Contact contact = contacts.get(Math.floorMod(at, contacts.size()));
                    contact.id = each + at;
                    long wall = System.nanoTime();
                    long cpu = threads.getCurrentThreadCpuTime();
                    persist(both.get(each), List.of(contact));
                    if (at >= 0) {
                        took.get(each)[0][at] = System.nanoTime() - wall;
                        took.get(each)[1][at] = threads.getCurrentThreadCpuTime() - cpu;
                    }
                }
            }
        }
        Map<String, double[]> medians = new HashMap<>();
        took.forEach((each, times) -> medians.put(each, new double[] {median(times[0]), median(times[1])}));
        OUT.println(JSON.writeValueAsString(medians));
        OUT.flush();
    }

    static double median(long[] nanoseconds) {
        return Arrays.stream(nanoseconds).sorted().skip(nanoseconds.length / 2).findFirst().getAsLong() / 1000.0;
    }

    static void persist(SessionFactory factory, List<Contact> contacts) {
        factory.inTransaction(session -> contacts.forEach(session::persist));
    }

    static List<Contact> contacts() throws Exception {
        List<Contact> found = new ArrayList<>();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JsonNode row = JSON.readTree(line);
            Contact contact = JSON.treeToValue(row.get(1), Contact.class);
            contact.id = row.get(0).asText();
            found.add(contact);
        }
        return found;
    }
}
